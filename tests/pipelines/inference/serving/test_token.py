import pytest

from pipelines.errors import UserError
from pipelines.inference.serving.token import digest_of, is_right, known_token, own_token, token_file


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SALMONN_TOKEN", raising=False)


def test_a_token_is_made_once_and_only_its_owner_reads_it():
    assert known_token() == ""
    token = own_token()
    assert len(token) > 40 and own_token() == known_token() == token
    assert token_file().stat().st_mode & 0o777 == 0o600 and token_file().parent.stat().st_mode & 0o777 == 0o700


def test_the_environments_token_comes_first_and_is_not_written(monkeypatch):
    monkeypatch.setenv("SALMONN_TOKEN", "given")
    assert own_token() == known_token(for_others=True) == "given" and not token_file().exists()


def test_the_files_token_is_not_given_to_other_machines():
    own_token()
    assert known_token(for_others=True) == ""


def test_a_token_that_others_may_read_is_refused():
    own_token()
    token_file().chmod(0o640)
    with pytest.raises(UserError, match="others may read the token; chmod 600"):
        known_token()


@pytest.mark.parametrize(
    ("header", "right"),
    [("Bearer t", True), ("bearer  t", True), ("Bearer T", False), ("t", False), ("Basic t", False), ("", False)],
)
def test_only_the_token_itself_is_right(header, right):
    assert is_right(header, digest_of("t")) == right
