"""What a text says without its secrets, for a file that somebody sends to others.

It hides too much rather than too little: values of the environment, keys in URIs, what is named as a secret, and what
looks like one. Nobody can promise more of free text, so whoever sends it reads it first.
"""

import json
import re
from collections.abc import Mapping
from urllib.parse import quote

HIDDEN = "<hidden>"
SHOWN_VARIABLES = (
    *("CUDA_VISIBLE_DEVICES", "HF_HUB_OFFLINE", "LANG", "LC_ALL", "MKL_NUM_THREADS", "NCCL_DEBUG", "OMP_NUM_THREADS"),
    *("PYTHONHASHSEED", "RAY_AUTH_MODE", "TOKENIZERS_PARALLELISM", "TRANSFORMERS_OFFLINE", "TZ"),
)
"""Variables that hold a number, a mode or a locale; the value of every other one is hidden wherever it appears."""
SHORTEST_VALUE, SHORTEST_SECRET = 8, 4
"""Characters; a shorter value of the environment is a word like any other."""
DIGEST_CHARACTERS = 8
"""What is left of a digest: enough to compare two, too little to be a token."""

SECRET_NAME = (
    r"(?:secret|passw|passphrase|passcode|pgpass|credential|signature|cookie|authorization|bearer|token(?!iz)"
    r"|(?:api|access|private|account)[_-]?key|(?<![a-z])(?:auth|key|pwd|pw|pass)(?![a-z]))"
)
ASSIGNED = r"""[\\"']*(?:\s*[:=]\s*|\s+is\s+|\s*,\s*b?(?=["']))"""
"""The last as in a list of headers; the names before it are bounded, or a long word would take its square in time."""
QUOTED = r""""(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*\'"""
NUMBER = r"""(?!-?(?:\d{1,6}|\d+\.\d*(?:e[+-]?\d+)?|true|false|null|nan)(?![\w.]))"""
"""Where none of these begins: `token_accuracy: 0.53` and `max_new_tokens=24` are figures."""
RULES = [
    (re.compile(r"-----BEGIN [^-]*PRIVATE KEY-----.*?(?:-----END [^-]*-----|\Z)", re.DOTALL), HIDDEN),
    (re.compile(r"\b(bearer|basic)\s+[\w.~+/=-]{4,}", re.IGNORECASE), rf"\1 {HIDDEN}"),
    (
        # To the end of the line: these may hold blanks.
        re.compile(
            rf"((?:passw|passphrase|authorization|cookie)[\w.-]{{0,64}}{ASSIGNED})(?:{QUOTED}|.+)", re.IGNORECASE
        ),
        rf"\1{HIDDEN}",
    ),
    (re.compile(rf"(--[\w-]{{0,32}}{SECRET_NAME}[\w-]{{0,32}}\s+)(?:{QUOTED}|\S+)", re.IGNORECASE), rf"\1{HIDDEN}"),
    (re.compile(r"((?:^|\s)(?:-u|--user)[\s=]+)\S+:\S+"), rf"\1{HIDDEN}"),
    (re.compile(r"(?<![\w.+-])[\w.+-]{1,64}:[^\s/@:]{1,64}@(?=\w)"), f"{HIDDEN}@"),
    (re.compile(r"(hooks\.slack\.com/services/)\S+"), rf"\1{HIDDEN}"),
    (re.compile(r"\beyJ[\w-]{6,}\.[\w.-]{6,}"), HIDDEN),
    (re.compile(rf"({SECRET_NAME}[\w.-]{{0,64}}{ASSIGNED}){NUMBER}(?:{QUOTED}|\S+)", re.IGNORECASE), rf"\1{HIDDEN}"),
    (
        re.compile(
            r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}|\b(?:gh[a-z]_|github_pat_|hf_|sk-|sk_live_|glpat-|xox[a-z]-|AIza|ya29\.)[\w.-]{8,}"
        ),
        HIDDEN,
    ),
    (re.compile(rf"(?<![A-Za-z0-9])((?=[a-z]*\d)[a-z0-9]{{{DIGEST_CHARACTERS}}})[a-z0-9]{{24,}}"), r"\1…"),
]
USER = re.compile(r"://([^/\s]*)@")
LONG_WORD = re.compile(r"[\w-]{20,}|[A-Za-z0-9/+]{40}")
CHANGE = re.compile(r"[a-z][A-Z0-9]|[0-9][A-Za-z]|[A-Z][0-9]")
MOST_CHANGES = 4
"""Of a long name's letters and digits, as in `BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2`; random keys have more."""
URI = re.compile(r"\b([a-z][a-z0-9+.-]{0,20}://)(\S*)", re.IGNORECASE)


def secrets_of(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the values of variables that a text must not hold, as they may be written -> what stands for them."""
    found = {}
    for name, value in environment.items():
        if name in SHOWN_VARIABLES:
            continue
        words = {value.strip(), *re.split(r"[\s;,]+", value)}
        words |= {word.partition("=")[2] for word in words}
        shortest = SHORTEST_SECRET if re.search(SECRET_NAME, name, re.IGNORECASE) else SHORTEST_VALUE
        parts = {word for word in words if len(word) >= shortest}
        users = {part for user in USER.findall(value) for part in user.split(":")}
        for part in parts | {part for part in users if len(part) >= SHORTEST_SECRET}:
            for written in (part, json.dumps(part)[1:-1], quote(part), quote(part, safe="")):
                found[written] = f"<${name}>"
    return dict(sorted(found.items(), key=lambda one: -len(one[0])))


def redact(text: str, secrets: Mapping[str, str]) -> str:
    """Return a text without the values of `secrets_of`, without users and queries of URIs, and by `RULES`."""
    for value, name in secrets.items():
        text = text.replace(value, name)
    text = URI.sub(lambda found: found[1] + _address(found[2]), text)
    for pattern, instead in RULES:
        text = pattern.sub(instead, text)
    return LONG_WORD.sub(lambda found: HIDDEN if len(CHANGE.findall(found[0])) > MOST_CHANGES else found[0], text)


def _address(rest: str) -> str:
    """Return what of a URI after its scheme is no secret; a password may hold any character, blanks left out."""
    before, user, address = rest.rpartition("@")
    if "?" in before or "#" in before:
        return HIDDEN  # in the user's password or in the query: nobody can tell
    path, mark, _ = re.split(r"([?#]|$)", address, maxsplit=1)
    return (HIDDEN + user if user else "") + path + (mark + HIDDEN if mark else "")
