"""Prefect flows, recipes and deployments. Knows every wing and computes nothing itself."""
