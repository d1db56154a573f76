"""Help for the commands that take a recipe: what recipes there are. Their flags depend on the recipe."""

from unmask.recipes.listing import list_recipe_names

SHORT = "--data is short for --data.path or --data.name, and --seed for --training.seed."
TRUST = "A .py recipe is code, and it is executed: only give one that you trust."


def describe_train() -> str:
    """Return the usage of `unmask train`."""
    return f"train RECIPE, where RECIPE is one of {', '.join(list_recipe_names())}, a .py file or a config.json"


def describe_train_tokenizer() -> str:
    """Return the usage of `unmask train-tokenizer`."""
    known = ", ".join(list_recipe_names(tokenizers=True))
    return f"train-tokenizer RECIPE, where RECIPE is one of {known}, a .py file or a config.json"


def is_recipe(word: str) -> bool:
    """Return whether a word is the name of a recipe, or of a file that may hold one."""
    return word in (*list_recipe_names(), *list_recipe_names(tokenizers=True)) or word.endswith((".py", ".json"))


def print_train_help() -> None:
    """Print the help of `unmask train` without a recipe."""
    print(f"usage: unmask {describe_train()}; the flags depend on it: unmask train digits --help")
    print(SHORT)
    print(TRUST)


def print_train_tokenizer_help() -> None:
    """Print the help of `unmask train-tokenizer` without a recipe."""
    usage = describe_train_tokenizer()
    print(f"usage: unmask {usage}; the flags depend on it: unmask train-tokenizer cifar10-tokenizer --help")
    print(SHORT)
    print(TRUST)
