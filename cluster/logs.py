"""Log lines on stderr that say who speaks; no Ray is imported for them."""

import logging

LOG_HANDLER = "salmonn"


def set_up_logging(who: str = "", *, level: int = logging.INFO) -> None:
    """Log to stderr, each line naming `who` speaks (`worker 3`, `rank 0`); a second call replaces the first."""
    handler = logging.StreamHandler()
    handler.set_name(LOG_HANDLER)
    prefix = f"[{who}] ".replace("%", "%%") if who else ""
    handler.setFormatter(logging.Formatter(f"%(asctime)s {prefix}%(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    for earlier in [h for h in root.handlers if h.get_name() == LOG_HANDLER]:
        root.removeHandler(earlier)
    root.addHandler(handler)
    root.setLevel(level)
