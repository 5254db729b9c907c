"""What is known about a household at the end of a week, and what it did next."""

import polars as pl

SPANS = (4, 12, 26)  # weeks to look back
HOUSEHOLD = ["household_id"]
HERE = ["household_id", "department"]
KEY = [*HERE, "week", "bought"]  # all other columns of the examples are features


def by_week(transactions: pl.DataFrame, by: list[str]) -> pl.DataFrame:
    """What each `by` bought in each week."""
    return transactions.group_by(*by, "week").agg(
        baskets=pl.col("basket_id").n_unique(),
        lines=pl.len(),
        promoted=(pl.col("on_display") | pl.col("in_mailer")).sum(),
        saved=pl.sum_horizontal("retail_disc", "coupon_disc", "coupon_match_disc").sum(),
        spent=pl.col("sales_value").sum(),
    )


def examples(households: pl.DataFrame, purchases: pl.DataFrame, week: int, horizon: int) -> pl.DataFrame:
    """One row for each department and each household seen by the end of `week`; `bought` says if it did afterwards.

    `households` and `purchases` are what households bought by week, in all and by department. The features look at
    weeks up to `week` only, `bought` at the `horizon` weeks after it. Features of the household's purchases in the
    department end in `_here`; they are null where there were none.
    """
    future = purchases.filter(pl.col("week").is_between(week + 1, week + horizon))
    return (
        history(households, HOUSEHOLD, week)
        .join(purchases.select("department").unique(), how="cross")
        .join(history(purchases, HERE, week), on=HERE, how="left", validate="1:1", suffix="_here")
        .join(future.select(HERE).unique().with_columns(bought=True), on=HERE, how="left", validate="1:1")
        .with_columns(pl.col("bought").fill_null(False), week=pl.lit(week))
    )


def history(weeks: pl.DataFrame, by: list[str], week: int) -> pl.DataFrame:
    """For each `by`: the weeks since its last purchase, and its purchases in the last 4, 12 and 26 weeks."""
    features = [(week - pl.col("week").max()).alias("weeks_since")]
    for span in SPANS:
        recent = pl.col("week") > week - span
        features += [
            recent.sum().alias(f"weeks_{span}"),
            pl.col("baskets", "lines", "promoted").filter(recent).sum().name.suffix(f"_{span}"),
            pl.col("saved", "spent").filter(recent).sum().round(2).name.suffix(f"_{span}"),
        ]
    return weeks.filter(pl.col("week") <= week).group_by(by).agg(features)
