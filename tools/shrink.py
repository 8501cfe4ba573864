from norton_det.cli.main import launch

if __name__ == "__main__":
    launch("shrink")
