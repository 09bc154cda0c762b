"""Imported by the config of a run that is to be killed after a step."""

from mmengine.registry import HOOKS

from tests.test_engine.runs import InterruptHook

HOOKS.register_module(module=InterruptHook)
