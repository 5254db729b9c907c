"""Reading and writing by name: the suffix says the format, the type the library.

    self.write("prices.parquet", frame)                  # polars, pandas, pyarrow, duckdb
    prices = self.read("prices.parquet", pl.LazyFrame)
    self.write("model.json", Model(depth=3))             # plain values, dataclasses, msgspec, pydantic
    self.write("curve.png", figure)                      # matplotlib, plotly, Altair, Pillow
    self.write("rows.csv.gz", frame)                     # a second suffix compresses

Each library reads and writes with its own functions, which get the options that are given. Only what a task uses is
imported. A format of your own is an entry point of `gluepy.formats`, named like the suffix: an object with
`write(path, value, **options)` and `read(path, kind, **options)`.
"""

from gluepy.data.facts import Facts, facts_of
from gluepy.data.files import read_file, write_file
from gluepy.data.kinds import DataError

__all__ = ["DataError", "Facts", "facts_of", "read_file", "write_file"]
