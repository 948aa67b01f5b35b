"""Completion of verbs and keys in a shell: `eval "$(salmonn completion)"` in bash, or in zsh after bashcompinit."""

from collections.abc import Callable, Collection, Iterator, Sequence

from pipelines.interface.help import describe_keys

SCRIPT = """\
_salmonn() {
    local IFS=$'\\n'
    COMPREPLY=($(salmonn complete "${COMP_WORDS[@]:1:$COMP_CWORD}" 2>/dev/null))
    [[ ${COMPREPLY[0]-} == *= ]] && compopt -o nospace
}
complete -o default -F _salmonn salmonn
"""


def candidates(words: Sequence[str], verbs: Collection[str], load_config_type: Callable[[str], type]) -> Iterator[str]:
    """Yield what the last of the words typed so far may become: words of verbs, then `key=`."""
    *before, begun = words or [""]
    typed = " ".join(before)
    for verb in verbs:
        if typed == verb or typed.startswith(f"{verb} "):
            keys = (f"{key.name}=" for key in describe_keys(load_config_type(verb)))
            yield from (key for key in keys if key.startswith(begun))
            return
    places = {tuple(verb.split()) for verb in verbs}
    nexts = {
        place[len(before)] for place in places if list(place[: len(before)]) == before and len(place) > len(before)
    }
    yield from sorted(word for word in nexts if word.startswith(begun))
