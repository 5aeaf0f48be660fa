"""Sensors: what reads power or energy here, and what the training itself takes."""

from edgelean.sensors.carbon import PowerEstimate as PowerEstimate
from edgelean.sensors.carbon import TrainingCost as TrainingCost
from edgelean.sensors.carbon import TrainingEnergy as TrainingEnergy
from edgelean.sensors.carbon import estimate_power as estimate_power
from edgelean.sensors.chain import SensorChain as SensorChain
from edgelean.sensors.find import Probe as Probe
from edgelean.sensors.find import find_sensor as find_sensor
from edgelean.sensors.find import line_up as line_up
from edgelean.sensors.find import probe_sensors as probe_sensors
from edgelean.sensors.replay import open_replay as open_replay
from edgelean.sensors.window import Energy as Energy
from edgelean.sensors.window import Sensor as Sensor
from edgelean.sensors.window import SensorError as SensorError
