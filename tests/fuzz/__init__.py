"""Bytes that no honest peer sends: what they may do, and a fuzzer that looks for those that do more."""
