"""The operator of KubeDistill: DistillationJobs become pods, stage by stage."""
