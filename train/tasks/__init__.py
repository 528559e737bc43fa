"""What can be trained."""

from .language_model import TrainingResult, train_language_model
from .recipe import LanguageModelRecipe, read_recipe

__all__ = ["LanguageModelRecipe", "TrainingResult", "read_recipe", "train_language_model"]
