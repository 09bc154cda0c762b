"""Runs that ask before they touch what an earlier one left."""

import copy

from mmengine.runner import Runner, find_latest_checkpoint
from torch import nn

from mmgnv3.engine.resume import check_resume
from mmgnv3.registry import RUNNERS
from mmgnv3.utils.checkpoints import read_checkpoint
from mmgnv3.utils.pretrained import pretrained_files
from mmgnv3.utils.wrappers import unwrap


@RUNNERS.register_module()
class CheckedRunner(Runner):
    """A runner whose hooks can refuse a checkpoint before its run's config is overwritten.

    mmengine puts the config of a run into the work dir when the runner is made, over that of an
    earlier start, and has the hooks look at the checkpoint when training begins. Here
    :func:`mmgnv3.engine.resume.check_resume` sees it first. ``tools/train.py`` checks more and
    earlier; this is for the frameworks' own scripts, and therefore for mim.

    Raises:
        FileNotFoundError: If there is no such checkpoint, or none of those that parts of the
            network start from (``init_cfg``).
        ValueError: If one of them cannot be read, or a resumed run would be another one.
    """

    def dump_config(self) -> None:
        """Write the config into the work dir, unless the run cannot be resumed with it.

        What this start resumed is left out: a test with that config would resume its checkpoint
        instead of loading it, and the weights of a best one have no state to resume.
        """
        if not self._resume:
            super().dump_config()
            return
        path = self._load_from or find_latest_checkpoint(self.work_dir)
        if path:
            check_resume(read_checkpoint(path), self.model, self.hooks)
        cfg = self.cfg
        self.cfg = copy.deepcopy(cfg)
        self.cfg.update(resume=False, load_from=None)
        super().dump_config()
        self.cfg = cfg

    def train(self) -> nn.Module:
        """Train, if files that parts of the network start from can be read."""
        for _, path, _, label in pretrained_files(unwrap(self.model)):
            # Of a file that was cut off, mmengine raises what does not name it.
            if '://' not in path:
                read_checkpoint(path, label)
        return super().train()
