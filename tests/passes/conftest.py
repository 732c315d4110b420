from drawn_scores import draw, make_scores, small_tiles

__all__ = ["draw", "make_scores", "small_tiles"]
