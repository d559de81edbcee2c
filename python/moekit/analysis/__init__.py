"""Looking at what models and routers do: figures of their own, and the pictures of them."""
