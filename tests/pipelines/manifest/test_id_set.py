import itertools

import numpy as np
import pyarrow as pa
import pytest

from pipelines.manifest.id_set import IdSet, to_ids


@pytest.mark.parametrize("seed", range(4))
def test_ids_are_new_exactly_once(seed):
    rng = np.random.default_rng(seed)
    pool = rng.integers(0, 3, size=(3_000, 16), dtype=np.uint8)  # many zero bytes, also at both ends
    pool[:, 3:13] = 0
    ids, seen = IdSet(), set()
    for size in rng.integers(0, 200, size=40):
        batch = [pool[place].tobytes() for place in rng.integers(0, len(pool), size=size)]
        expected = []
        for identity in batch:
            expected.append(identity not in seen)
            seen.add(identity)
        assert ids.add(np.frombuffer(b"".join(batch), "S16")).tolist() == expected
    asked = [identity.tobytes() for identity in pool]
    assert ids.holds(np.frombuffer(b"".join(asked), "S16")).tolist() == [identity in seen for identity in asked]
    assert len(seen) < sum(rng.integers(0, 200, size=40))


def test_runs_stay_few_and_hold_each_id_once():
    ids, rng = IdSet(), np.random.default_rng(0)
    for _ in range(300):
        ids.add(np.frombuffer(rng.bytes(16 * 64), "S16"))
    lengths = [len(run) for run in ids._runs]
    assert sum(lengths) == 300 * 64 and len(lengths) <= 9
    assert all(longer > 2 * shorter for longer, shorter in itertools.pairwise(lengths))


def test_hex_digits_become_bytes_in_slices_too():
    names = [f"{number:032x}" for number in (0, 255, 2**128 - 1)]
    assert to_ids(pa.array(names)).tolist() == [bytes.fromhex(name).rstrip(b"\0") for name in names]
    assert to_ids(pa.array(names)[1:]).tolist() == [bytes.fromhex(name).rstrip(b"\0") for name in names[1:]]
    assert len(to_ids(pa.array([], pa.string()))) == 0


@pytest.mark.parametrize("wrong", ["", "0" * 31, "g" * 32, " " + "0" * 31, "  " + "0" * 30, None])
def test_what_is_no_id_is_named(wrong):
    with pytest.raises(ValueError, match=f"id {wrong!r}: must be 32 hex digits"):
        to_ids(pa.array(["0" * 32, wrong]))
