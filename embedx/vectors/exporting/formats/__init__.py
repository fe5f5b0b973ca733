"""The formats of exports, one file each: `to_NAME.py` has a function `write` as `base.Write` describes it."""
