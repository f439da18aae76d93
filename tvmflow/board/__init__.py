"""Boards: run, measure and check artifacts on another machine, over TVM's RPC."""
