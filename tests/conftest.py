"""What the whole run says at its end."""

import compared


def pytest_terminal_summary(terminalreporter, config):
    """With nbval on: how many cells it compared strictly, and which it did not."""
    if config.getoption("nbval", default=False):
        terminalreporter.section("notebook cells")
        for line in compared.report():
            terminalreporter.write_line(line)
