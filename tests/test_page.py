"""The links on a run's page: to MLflow where it is a server, without the password in its address."""

import pytest

from flows import page


@pytest.mark.parametrize("store, expected", [
    ("", "sts@1"),
    ("sqlite:////somewhere/mlflow.db", "sts@1"),
    ("http://127.0.0.1:5000/", "[sts@1](http://127.0.0.1:5000/#/models/sts/versions/1)"),
    ("https://ann:secret@mlflow.example.org", "[sts@1](https://mlflow.example.org/#/models/sts/versions/1)")])
def test_a_version_is_linked_where_the_store_has_a_page(store, expected, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    assert page.link("sts@1", "models/sts/versions/1") == expected
    monkeypatch.setenv("EVERGREEN_MLFLOW_PAGE", "https://models.example.org/")
    assert page.link("sts@1", "models") == (
        "[sts@1](https://models.example.org/#/models)" if store.startswith("http") else "sts@1")
