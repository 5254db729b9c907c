"""From the raw tables to clean ones in the storage: products, prices and transactions."""
