from __future__ import annotations

import pytest
import small_models
import torch

from trimtab.checkpoints.base import Checkpoint


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Small products are faster so, and the machine may be busy."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return small_models.build(tmp_path_factory.mktemp("llama"))
