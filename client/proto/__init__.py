"""The service's protobuf messages, generated from tablebay.proto by generate.py."""
