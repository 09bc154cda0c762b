"""Runs that ask before they touch what an earlier one left."""

from mmengine.runner import Runner, find_latest_checkpoint

from mmgnv3.engine.resume import check_resume
from mmgnv3.registry import RUNNERS
from mmgnv3.utils import read_checkpoint


@RUNNERS.register_module()
class CheckedRunner(Runner):
    """A runner whose hooks can refuse a checkpoint before its run's config is overwritten.

    mmengine puts the config of a run into the work dir when the runner is made, over that of an
    earlier start, and has the hooks look at the checkpoint when training begins. Here
    :func:`mmgnv3.engine.resume.check_resume` sees it first. ``tools/train.py`` checks more and
    earlier; this is for the frameworks' own scripts, and therefore for mim.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If it cannot be read, or the run would be another one.
    """

    def dump_config(self) -> None:
        """Write the config into the work dir, unless the run cannot be resumed with it."""
        path = self._resume and (self._load_from or find_latest_checkpoint(self.work_dir))
        if path:
            check_resume(read_checkpoint(path), self.model, self.hooks)
        super().dump_config()
