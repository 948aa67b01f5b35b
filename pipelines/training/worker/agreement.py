"""Workers that end together: what one of them cannot mend by trying again ends them all, with its reason."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch.distributed as dist

from pipelines.errors import USER_ERRORS, JobIncompleteError

REASON_BYTES = 2_000


@contextmanager
def together(where: str, *, device: torch.device, timed: AbstractContextManager[None] | None = None) -> Iterator[None]:
    """Run the block on all workers, and end them all where it fails on one; the agreement itself is in `timed`.

    What trying again may mend (a store that does not answer) is raised as it is, on its worker alone.

    Raises:
        JobIncompleteError: On all workers alike, where the block raised one of `USER_ERRORS`, or FileNotFoundError, on
            one.
    """
    reason = ""
    try:
        yield
    except (FileNotFoundError, *USER_ERRORS) as error:
        reason = str(error) or repr(error)
    with timed or nullcontext():
        reason = first_reason(reason, device=device)
    if reason:
        raise JobIncompleteError(f"{where}: {reason}")


def first_reason(reason: str, *, device: torch.device) -> str:
    """Return, on every worker, the reason of the lowest rank that gave one; empty if none did."""
    if not dist.is_initialized():
        return reason
    found = torch.tensor([len(reason)], device=device)
    dist.all_reduce(found)
    if not found.item():
        return ""
    own = torch.tensor(list(reason.encode()[:REASON_BYTES].ljust(REASON_BYTES)), dtype=torch.uint8, device=device)
    reasons = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(reasons, own)
    texts = (bytes(tensor.tolist()).decode(errors="replace").strip() for tensor in reasons)
    return next(filter(None, texts))
