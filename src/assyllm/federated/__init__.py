"""The federation: typed messages, pure client and server steps, the round loop."""
