import __init__  # noqa: F401  registers this folder as the package `hotlora`

if __name__ == "__main__":
    from hotlora.trainer.cli import main

    raise SystemExit(main())
