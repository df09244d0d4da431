"""What makes a training the one it is: every part told apart, and what may differ."""

from __future__ import annotations

import copy
import re
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from dra_scvi import DRA
from dra_scvi._training import identity
from dra_scvi._training.identity import check_identity, held_settings, training_identity
from tests.helpers import SMALL, cells

if TYPE_CHECKING:
    from anndata import AnnData

SAVED: dict[str, dict[str, Any]] = {
    "settings": {
        "seed": 0,
        "drop_last": False,
        "cells": {"n": 2, "sum": "5", "digest": "a"},
        "counts": {"digest": "a"},
    },
    "versions": {"dra_scvi": "0.1.0", "torch": "2.1.0", "numpy": "2.1.0"},
    "split": {"cells trained on": {"digest": "a"}},
}
PATH = Path("state.ckpt")


def now(**changes: Any) -> dict[str, dict[str, Any]]:
    """Return the identity with names changed, wherever they are."""
    found = copy.deepcopy(SAVED)
    for part in found.values():
        part |= {name: changes[name] for name in part.keys() & changes.keys()}
    found["settings"] |= changes.pop("more", {})
    return found


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 1}, "seed: 0 in the checkpoint, 1 now"),
        ({"seed": "a"}, "seed: 0 in the checkpoint, 'a' now"),
        ({"drop_last": 0}, "drop_last: False in the checkpoint, 0 now"),
        ({"seed": {"digest": "a"}}, "seed: 0 in the checkpoint, set now"),
        ({"cells": {"n": 2, "sum": "5", "digest": "b"}}, "cells: in another order"),
        ({"cells": {"n": 3, "sum": "6", "digest": "b"}}, "cells: 2 in the checkpoint, 3 now"),
        ({"cells": {"n": 2, "sum": "6", "digest": "b"}}, "cells: others than in the checkpoint"),
        ({"counts": {"digest": "b"}}, "counts: others than in the checkpoint"),
        ({"torch": "2.2.0"}, "torch: '2.1.0' in the checkpoint, '2.2.0' now"),
        ({"numpy": "1.1.0"}, "numpy: '2.1.0' in the checkpoint, '1.1.0' now"),
        ({"dra_scvi": "0.1.1"}, "dra_scvi: '0.1.0' in the checkpoint, '0.1.1' now"),
        ({"more": {"new": None}}, "new: not set in the checkpoint, None now"),
        ({"cells trained on": {"digest": "b"}}, "cells trained on: others than in the checkpoint"),
        (
            {"seed": 1, "counts": {"digest": "b"}, "torch": "3.0"},
            "seed: 0 in the checkpoint, 1 now; counts: others than in the checkpoint; "
            "torch: '2.1.0' in the checkpoint, '3.0' now",
        ),
        # another seed leads to another split
        ({"seed": 1, "cells trained on": {"digest": "b"}}, "seed: 0 in the checkpoint, 1 now"),
    ],
)
def test_another_training(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=rf"training \({re.escape(words)}\): go on with"):
        check_identity(PATH, SAVED, now(**changes))


def test_what_was_set_and_is_not() -> None:
    saved = copy.deepcopy(SAVED)
    saved["settings"]["old"] = 1
    with pytest.raises(ValueError, match=r"\(old: 1 in the checkpoint, not set now\)"):
        check_identity(PATH, saved, SAVED)


def test_the_same_training_without_a_word() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_identity(PATH, SAVED, now())
        check_identity(PATH, SAVED, now(seed=0.0, more={}))  # only some kinds matter


def test_other_patches_are_said() -> None:
    with pytest.warns(UserWarning, match="with other versions") as caught:
        check_identity(PATH, SAVED, now(torch="2.1.9", numpy="2.1.0.post1"))
    said = str(caught[0].message)
    assert "(torch: '2.1.0' in the checkpoint, '2.1.9' now; numpy: '2.1.0' in" in said
    assert len(caught) == 1
    assert caught[0].filename.endswith("test_identity.py")


def test_what_cannot_be_compared_is_said() -> None:
    unknown = identity.as_plain(object())
    saved, same = copy.deepcopy(SAVED), now(more={"a": unknown, "b": [unknown, unknown]})
    saved["settings"] |= {"a": unknown, "b": [unknown, unknown]}
    words = r"whether a \(builtins.object\) and b \(builtins.object, builtins.object\) did not"
    with pytest.warns(UserWarning, match=words) as caught:
        check_identity(PATH, saved, same)
    assert caught[0].filename.endswith("test_identity.py")


# -- cells ---------------------------------------------------------------------------------------


def registered(adata: AnnData, **setup: Any) -> dict[str, Any]:
    DRA.setup_anndata(adata, **{"batch_key": "batch", **setup})
    return identity._cells(DRA(adata, **SMALL).adata_manager)


def test_every_part_of_the_cells_is_described() -> None:
    found = registered(cells(), layer=None, allow_noninteger=True)
    assert "allow_noninteger" not in found
    assert found["kind of counts"] == "csr of float32 in memory"
    assert {"counts", "values of batch", "cells", "genes"} <= found.keys()
    assert found["values of batch"].keys() == {"digest"}
    assert "values of X" not in found
    assert found["cells"]["n"] == 60
    assert found["genes"]["n"] == 12
    assert registered(cells(), layer=None) == found


def test_dense_counts_and_tables_are_hashed_whole() -> None:
    digests = set()
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
    for counts in (
        matrix,
        matrix.T.copy(),  # of another shape
        matrix.astype(np.float64),
        np.where(matrix == 5, 6, matrix).astype(np.float32),
        sparse.csr_matrix(matrix),
        sparse.csr_matrix(np.where(matrix == 5, 6, matrix).astype(np.float32)),
        sparse.csr_matrix(matrix[:, ::-1].copy()),
    ):
        digests.add(identity._digest(identity._parts(counts)))
    assert len(digests) == 7
    of_table = identity._digest(identity._parts(pd.DataFrame(matrix)))
    assert of_table == identity._digest(identity._parts(matrix))
    moved = sparse.csr_matrix(matrix)
    moved.indptr = np.array([0, 3, 5], dtype=moved.indptr.dtype)  # one entry in another row
    assert identity._digest(identity._parts(moved)) not in digests


def test_counts_in_memory_are_hashed_where_they_lie() -> None:
    dense = np.ones((3, 2), np.float32)
    held = sparse.csr_matrix(dense)
    for counts, expected in ((dense, [dense]), (held, [held.data, held.indices, held.indptr])):
        _, *arrays = identity._parts(counts)
        assert [id(array) for array in arrays] == [id(array) for array in expected]


def test_stored_counts_are_hashed_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    import dask.array

    from dra_scvi._data import matrices

    monkeypatch.setattr(matrices, "BLOCK_ROWS", 2)
    matrix = np.arange(12, dtype=np.float32).reshape(6, 2)
    digests = set()
    for place in range(6):
        changed = matrix.copy()
        changed[place] += 100
        for counts in (changed, sparse.csr_matrix(changed)):
            stored = dask.array.from_array(counts, chunks=(2, 2), asarray=False)
            assert identity._kind(stored).endswith(" in a file or in chunks")
            digests.add(identity._digest(identity._parts(stored)))
    assert len(digests) == 12


def test_types_and_ends_of_arrays_count() -> None:
    zeros = np.zeros(4, np.float32)
    parts = [zeros], [zeros.view(np.int32)], [zeros.reshape(2, 2)], [zeros[:1], zeros[1:]], []
    assert len({identity._digest(part) for part in parts}) == 5
    assert identity._digest([zeros[::2]]) == identity._digest([zeros[:2]])


def test_the_order_of_names_counts_and_their_sum_does_not() -> None:
    one, other = (identity._of_names(pd.Index(names)) for names in (["a", "b"], ["b", "a"]))
    assert one["sum"] == other["sum"]
    assert one["digest"] != other["digest"]
    assert identity._of_names(pd.Index([1, 2])) == identity._of_names(pd.Index(["1", "2"]))


def test_the_kind_of_counts() -> None:
    kinds = {
        "ndarray of float64 in memory": np.ones((2, 2)),
        "csc of int64 in memory": sparse.csc_matrix(np.ones((2, 2), dtype=np.int64)),
        "list of ? in memory": [],
    }
    assert {identity._kind(counts): counts for counts in kinds.values()}.keys() == kinds.keys()


# -- settings ------------------------------------------------------------------------------------


def trainer(**changes: Any) -> Any:
    device = SimpleNamespace(type=changes.pop("device", "cpu"))
    return SimpleNamespace(
        **{
            "datamodule": SimpleNamespace(
                train_size=0.9, data_loader_kwargs={"batch_size": 7}, train_idx=np.arange(3)
            ),
            "strategy": SimpleNamespace(root_device=device),
            "gradient_clip_val": 2.0,
            "world_size": 1,
            "max_epochs": 5,
            "early_stopping_callback": None,
            **changes,
        }
    )


@pytest.fixture(scope="module")
def model() -> DRA:
    adata = cells()
    adata.obs["donor"] = adata.obs["batch"]
    DRA.setup_anndata(adata, batch_key="batch", categorical_covariate_keys=["donor"])
    return DRA(adata, **SMALL)


def held(model: DRA, trainer: Any, **plan: Any) -> dict[str, Any]:
    return held_settings(model, model._training_plan_cls(model.module, **plan), trainer, 3)


def test_settings_that_hold(model: DRA) -> None:
    found = held(model, trainer(), lr=0.5)
    expected = {
        "seed": 3,
        "model": "DRA",
        "layer": None,
        "batch_key": "batch",
        "categorical_covariate_keys": ["donor"],
        "continuous_covariate_keys": None,
        "n_latent": 4,
        "max_epochs": 5,
        "max_steps": None,
        "lr": 0.5,
        "early_stopping": None,
        "gradient_clip_val of the trainer": 2.0,
        "gradient_clip_val": None,
        "train_size": 0.9,
        "n_train": None,
        "batch_size": 7,
        "device": "cpu",
        "processes": 1,
        "threads": torch.get_num_threads(),
        "weight_decay": 1e-6,
    }
    assert {name: found[name] for name in expected} == expected
    for name in ("training", "prepare_data_per_node", "n_obs_training", "n_obs_validation"):
        assert name not in found
    assert not [name for name in found if name[0] == "_" or "kl_weight of" in name]
    assert "module" not in found


OF_TRAINER = (
    "max_epochs max_steps min_epochs min_steps accumulate_grad_batches gradient_clip_algorithm "
    "check_val_every_n_epoch limit_train_batches limit_val_batches overfit_batches "
    "val_check_interval num_sanity_val_steps precision"
)
OF_SPLITTER = (
    "n_train n_val train_size validation_size shuffle_set_split load_sparse_tensor drop_last"
)
OF_KIND = "limit_train_batches limit_val_batches overfit_batches val_check_interval drop_last"


def test_every_setting_of_trainer_and_split(model: DRA) -> None:
    own, of_data = OF_TRAINER.split(), OF_SPLITTER.split()
    data = SimpleNamespace(**{name: f"the {name}" for name in of_data})
    found = held(model, trainer(datamodule=data, **{name: f"the {name}" for name in own}))
    assert {name: found[name] for name in own + of_data} == {
        name: f"the {name}" for name in own + of_data
    }
    found = held(model, trainer(datamodule=SimpleNamespace(), max_epochs=None))
    assert {found[name] for name in own + of_data} == {None}


@pytest.mark.parametrize("name", OF_KIND.split())
def test_one_is_not_all_of_them(name: str) -> None:
    saved = copy.deepcopy(SAVED)
    saved["settings"][name] = 1
    with pytest.raises(ValueError, match=f"{name}: 1 in the checkpoint, 1.0 now"):
        check_identity(PATH, saved, now(more={name: 1.0}))


def test_settings_of_another_device_and_of_no_loader(model: DRA) -> None:
    found = held(model, trainer(device="cuda", datamodule=SimpleNamespace(), world_size=2))
    assert (found["device"], found["threads"], found["processes"]) == ("cuda", None, 2)
    assert found["batch_size"] == identity.settings.batch_size
    assert found["train_size"] is None


def test_early_stopping_by_what_it_watches(model: DRA) -> None:
    watch = SimpleNamespace(monitor="elbo_validation", mode="min", patience=4, min_delta=0.5)
    found = held(model, trainer(early_stopping_callback=watch))
    assert found["early_stopping"] == ["elbo_validation", "min", 4, 0.5, None]


SETTINGS: list[tuple[Any, bool]] = [
    (None, True),
    (True, True),
    (np.float32(1), True),
    ([1, "a", (2.0, None)], True),
    ([1, {}], False),
    ({}, False),
    (print, True),
    (torch.nn.Linear(1, 1), False),
    (object(), False),
]


@pytest.mark.parametrize(("value", "expected"), SETTINGS, ids=range(len(SETTINGS)))
def test_what_a_setting_is(value: Any, expected: bool) -> None:
    assert bool(identity._is_setting(value)) is expected


def test_settings_of_the_loss_belong_to_the_plan() -> None:
    plan: Any = SimpleNamespace(
        _hidden=1, own=2, training=True, loss_kwargs={"kl_weight": 1.0, "more": 3}
    )
    assert identity._plan_settings(plan) == {"own": 2, "more of the loss": 3}


def test_the_split_is_that_of_all_three_parts(model: DRA) -> None:
    plan = model._training_plan_cls(model.module)

    def of(**parts: Any) -> dict[str, Any]:
        data = SimpleNamespace(**{"train_idx": np.arange(3), "val_idx": np.arange(2), **parts})
        return training_identity(model, plan, trainer(datamodule=data), 0)

    whole = of()
    assert whole["split"] == of()["split"]
    ((name, split),) = whole["split"].items()
    assert (name, split.keys()) == ("cells trained on", {"digest"})
    for part in ("train_idx", "val_idx", "test_idx"):
        assert of(**{part: np.array([7])})["split"] != whole["split"], part
    assert whole["versions"].keys() == {identity.OWN_VERSION, *identity.OTHER_VERSIONS}
    assert whole["settings"]["cells"]["n"] == 60
    assert whole["settings"]["seed"] == 0
