from pyrl.cli import main

if __name__ == "__main__":  # saving a checkpoint may start a process that imports this module again
    main()
