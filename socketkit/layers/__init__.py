"""The layers that come with socketkit: each is a step between accept and handler."""
