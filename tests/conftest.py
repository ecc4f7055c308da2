"""Every test starts from the same random state and draws the same examples."""

import pytest
import torch
from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


# The tensors of the tests are small; two threads would only wait for each other, the more so when
# several test processes share two cores.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
