"""What every refused command does: one line, exit code 2, nothing left behind."""


def refused(command, folder, name, *overrides):
    """Type a command that must be refused; ``folder`` is where it is typed. Returns what it says."""
    before = sorted(folder.rglob("*"))

    code, _, err = command(name, *overrides)

    assert code == 2, err
    assert len(err.strip().splitlines()) == 1, err
    assert err.startswith(f"{name}.py: ")
    assert [path for path in sorted(folder.rglob("*")) if path not in before] == []
    return err
