# SPDX-License-Identifier: Apache-2.0
"""State machines of hypothesis: random steps against a model. The shortest sequence of steps that fails is printed.

Each run has other steps. A run prints its seed. METADATA_WSGI_SEED=<seed> repeats the run. METADATA_WSGI_NIGHTLY
makes more runs.
"""

from __future__ import annotations

import os
import random
from typing import ClassVar

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, run_state_machine_as_test

SEED = int(os.environ.get('METADATA_WSGI_SEED') or random.randrange(1 << 32))


class StateMachine(RuleBasedStateMachine):
    """Counts the steps of all runs."""

    steps: ClassVar[int] = 0

    @invariant()
    def _count(self) -> None:
        type(self).steps += 1


def run(
    machine: type[StateMachine], *, runs: int, steps: int, nightly_runs: int | None = None, shrink: bool = True
) -> None:
    """Run ``machine`` ``runs`` times with ``steps`` steps.

    With METADATA_WSGI_NIGHTLY: ``nightly_runs`` times, by default 50 * ``runs``.
    ``shrink``: search for a shorter sequence that fails. False for machines whose runs take seconds.
    """
    if os.environ.get('METADATA_WSGI_NIGHTLY'):
        runs = nightly_runs or 50 * runs
    machine.steps = 0
    print(f'METADATA_WSGI_SEED={SEED}')
    run_state_machine_as_test(
        seed(SEED)(machine),
        settings=settings(
            max_examples=runs, stateful_step_count=steps, deadline=None, database=None,
            phases=[Phase.generate, *([Phase.shrink] if shrink else [])],
            suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip
    print(f'{machine.__name__}: {machine.steps} steps in {runs} runs')
