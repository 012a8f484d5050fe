"""The parts of the simulator, in the order in which they are used; `deepprofile.simulator` puts them together."""
