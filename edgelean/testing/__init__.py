"""Contract suites: what every implementation of an interface of edgelean has to satisfy, yours included.

Beside them stand simulated plants, on which settings of the controller can be tried.
"""
