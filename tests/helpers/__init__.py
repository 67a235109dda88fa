"""What several folders of tests share. Not tests: programs in subprocesses import these modules too, as ``helpers.NAME``."""
