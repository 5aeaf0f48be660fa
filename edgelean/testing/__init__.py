"""Contract suites: what every implementation of an interface of edgelean has to satisfy, yours included."""
