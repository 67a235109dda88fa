"""Parts that break one promise each, on purpose: by the check that has to find them. They show that no check is empty."""
