"""The five studies of the method; what one has trained the others find.

python -m benchmarks.experiments.run_all --data DIR
"""

from __future__ import annotations

from benchmarks.experiments import earlier_stacks, methods, null_space, quantization, rounds
from benchmarks.experiments.study import command

STUDIES = (
    quantization.STUDY,
    rounds.STUDY,
    methods.STUDY,
    null_space.STUDY,
    earlier_stacks.STUDY,
)
app = command(*STUDIES)

if __name__ == "__main__":
    app()
