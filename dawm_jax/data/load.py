"""`load_dataset`: reads any dataset by its name."""

from dawm_jax.data import cache as cache_lib
from dawm_jax.data.dataset import OfflineDataset
from dawm_jax.data.sources import source_of


def load_dataset(name: str, *, cache: bool = True) -> OfflineDataset:
    """Reads a dataset, after downloading or collecting it if it is absent.

    Args:
      name: one of
        bundled/hopper/medium-v0     ships with the package
        /path/to/file.hdf5           a D4RL v2 file: flat arrays, `terminals`, `timeouts`
        dawm/hopper/medium-v1        collected from policies in the package
        mujoco/hopper/medium-v0      any other name is a Minari id, downloaded when absent
      cache: keep a flat copy in the user's cache folder and read it in later calls. Thousands
        of small HDF5 objects take seconds to minutes to read.

    Returns:
      Whole episodes, float32, valid (see `dataset.validate`).

    Raises:
      UserError: the dataset is missing, unreachable, malformed or not continuous control.
    """
    source = source_of(name)
    files = source.fetch(name)
    if not cache or not files:
        return source.load(name)
    return cache_lib.cached(name, files, source.load)
