"""What makes a composition serve: one engine under composed and classic servers. Private: plugins see it through the seams only."""
