"""What is known about a household at the end of a week, and what it did next."""

import polars as pl

SPANS = (4, 12, 26)  # weeks to look back
KEY = ["household_id", "department", "week", "bought"]  # all other columns are features


def examples(transactions: pl.DataFrame, week: int, horizon: int) -> pl.DataFrame:
    """One row for each department and each household seen by the end of `week`; `bought` says if it did afterwards.

    The features look at weeks up to `week` only, `bought` at the `horizon` weeks after it. Features of the household's
    purchases in that department end in `_here`; they are null where there were none.
    """
    past = transactions.filter(pl.col("week") <= week)
    future = transactions.filter(pl.col("week").is_between(week + 1, week + horizon))
    here = ["household_id", "department"]
    return (
        history(past, ["household_id"], week)
        .join(transactions.select("department").unique(), how="cross")
        .join(history(past, here, week), on=here, how="left", validate="1:1", suffix="_here")
        .join(future.select(here).unique().with_columns(bought=True), on=here, how="left", validate="1:1")
        .with_columns(pl.col("bought").fill_null(False), week=pl.lit(week))
    )


def history(past: pl.DataFrame, by: list[str], week: int) -> pl.DataFrame:
    """For each `by`: the weeks since its last purchase, and its purchases in the last 4, 12 and 26 weeks."""
    features = [(week - pl.col("week").max()).alias("weeks_since")]
    for span in SPANS:
        recent = pl.col("week") > week - span
        features += [
            pl.col("week").filter(recent).n_unique().alias(f"weeks_{span}"),
            pl.col("basket_id").filter(recent).n_unique().alias(f"baskets_{span}"),
            pl.col("sales_value").filter(recent).sum().round(2).alias(f"spent_{span}"),
            pl.col("saved").filter(recent).sum().round(2).alias(f"saved_{span}"),
            pl.col("promoted").filter(recent).mean().round(4).alias(f"promoted_{span}"),
        ]
    return past.group_by(by).agg(features)
