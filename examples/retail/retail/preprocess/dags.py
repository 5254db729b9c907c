"""The pipeline `preprocess`: three clean tables from the raw ones, as parquet files in the storage."""

import polars as pl

from gluepy.exec import DAG, Task, parallel
from retail.source import source


class PreprocessDAG(DAG):
    label = "preprocess"
    tasks = (
        parallel(
            "ProcessProducts",
            "ProcessPrices",
        ),
        "ProcessTransactions",
    )


class ProcessProducts(Task):
    """The catalogue: tidy names, "UNKNOWN" where they are missing, and the package size as a number and a unit."""

    def run(self) -> None:
        names = pl.col("department", "product_category", "product_type").str.replace_all(r"\s+", " ").str.strip_chars()
        size = pl.col("package_size").str.extract_groups(r"^(?<package_amount>\d*\.?\d+) *(?<package_unit>[A-Z]+)$")
        products = (
            source("products")
            .with_columns(names.fill_null("UNKNOWN"), size=size)
            .drop("package_size")
            .unnest("size")
            .with_columns(pl.col("package_amount").cast(pl.Float64))
            .sort("product_id")
            .collect()
        )
        with self.atomic(self.storage / "products.parquet") as file:
            products.write_parquet(file)
        self.log.info("products", rows=products.height, departments=products["department"].n_unique())
        self.metric("rows", products.height)


class ProcessPrices(Task):
    """What a product cost in a store in a week, before and after its discount, and whether it was promoted there."""

    def run(self) -> None:
        key = ["product_id", "store_id", "week"]
        paid = pl.col("sales_value") + pl.col("coupon_match_disc")
        prices = (
            source("transactions")
            .filter(pl.col("quantity") > 0)
            .group_by(key)
            .agg(
                regular_price=((paid + pl.col("retail_disc")).sum() / pl.col("quantity").sum()).round(4),
                price=(paid.sum() / pl.col("quantity").sum()).round(4),
            )
            .collect()
        )
        self.progress(1, 3)
        # A product may be promoted twice in a store and week: one row a key, so that joins add no rows.
        promotions = (
            source("promotions")
            .join(prices.lazy(), on=key, how="semi")
            .group_by(key)
            .agg(
                on_display=(pl.col("display_location") != "0").any(),
                in_mailer=(pl.col("mailer_location") != "0").any(),
            )
            .collect(engine="streaming")
        )
        self.progress(2, 3)
        prices = (
            prices.join(promotions, on=key, how="left", validate="1:1")
            .with_columns(pl.col("on_display", "in_mailer").fill_null(False))
            .sort(key)
        )
        with self.atomic(self.storage / "prices.parquet") as file:
            prices.write_parquet(file)
        self.progress(3, 3)
        self.log.info("prices", rows=prices.height, promoted=promotions.height)
        self.metric("rows", prices.height)


class ProcessTransactions(Task):
    """Every line of every receipt, in the shops' own time, with its department, its price and how it was promoted."""

    def run(self) -> None:
        products = pl.read_parquet(self.local(self.storage / "products.parquet"))
        prices = pl.read_parquet(self.local(self.storage / "prices.parquet"))
        in_utc = pl.col("transaction_timestamp").dt.replace_time_zone("UTC")
        transactions = (
            source("transactions")
            .with_columns(bought_at=in_utc.dt.convert_time_zone(self.context.timezone).dt.replace_time_zone(None))
            .drop("transaction_timestamp")
            .collect()
            .join(products.select("product_id", "department"), on="product_id", how="left", validate="m:1")
            .join(prices, on=["product_id", "store_id", "week"], how="left", validate="m:1")
        )
        unknown = transactions["department"].null_count()
        if unknown:
            self.log.warning("products that the catalogue lacks", lines=unknown)
        transactions = transactions.with_columns(
            pl.col("department").fill_null("UNKNOWN"), pl.col("on_display", "in_mailer").fill_null(False)
        ).sort("bought_at", "basket_id", "product_id")
        with self.atomic(self.storage / "transactions.parquet") as file:
            transactions.write_parquet(file)
        self.log.info("transactions", rows=transactions.height, households=transactions["household_id"].n_unique())
        self.metric("rows", transactions.height)
        self.metric("unknown_products", unknown)
