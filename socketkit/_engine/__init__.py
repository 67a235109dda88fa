"""The engine under composed and classic servers. Private: plugins use it only through `socketkit.seams`."""
