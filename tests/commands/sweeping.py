"""What tests of sweeps share: a sweep of four, and the states in its table."""

SIX = ("-m", "seed=0,1,3,2", "name=number_${hydra:job.num}", "hydra.sweep.dir=six")


def states(out, jobs=4):
    """The last column of the last table."""
    rows = [line.split("│") for line in out.splitlines() if "│" in line and "seed=" in line]
    return [row[-2].strip() for row in rows][-jobs:]
