"""From prompts to scored groups: sampling, filtering, evaluation."""
