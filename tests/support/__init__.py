"""What tests of several directories share: servers, disks, processes, storages."""
