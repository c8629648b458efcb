"""Rules to decisions: the one place that says what a guest may do."""

from xensock.policy.names import Names
from xensock.policy.policy import Policy
from xensock.policy.rules import Rule, RuleError, parse_rule

__all__ = ["Names", "Policy", "Rule", "RuleError", "parse_rule"]
