"""The command line in this process, for tests where the process is not the point: each model is loaded once."""

from __future__ import annotations

import functools
import os
from subprocess import CompletedProcess
from unittest import mock

import torch
from typer.testing import CliRunner

import interp
from interp.cli import app
from interp.cli.app import err, out
from interp.models.cards import card

_load = interp.models.load
out.width = err.width = 160


@functools.cache
def loaded(name):
    """A model that tests share and leave as it is."""
    return _load(name)


def load(name="smollm2", device=None, dtype=torch.float32, accept_license=False):
    if device is None and dtype == torch.float32 and card(name) is not None:
        return loaded(name)
    return _load(name, device=device, dtype=dtype, accept_license=accept_license)


def command(*arguments, **environment) -> CompletedProcess:
    """What a user gets to see: the exit code, standard output and standard error."""
    with mock.patch.object(interp.models, "load", load), mock.patch.dict(os.environ, COLUMNS="160", **environment):
        done = CliRunner().invoke(app, [*map(str, arguments)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)
