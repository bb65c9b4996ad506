"""OpenVINO: opening the library, writing and reading its files (IR), counting what its CPU plugin runs."""
