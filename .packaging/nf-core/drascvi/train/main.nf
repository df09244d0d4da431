process DRASCVI_TRAIN {
    tag "${meta.id}"
    label 'process_medium'

    conda "${moduleDir}/environment.yml"
    container "ghcr.io/OWNER/dra_scvi:0.2.0"

    input:
    tuple val(meta), path(cells)

    output:
    tuple val(meta), path("${prefix}.h5ad")  , emit: h5ad
    tuple val(meta), path("${prefix}_model/"), emit: model
    tuple val(meta), path("${prefix}.json")  , emit: json
    tuple val(meta), path("${prefix}.html")  , emit: report
    path "versions.yml"                      , emit: versions

    when:
    task.ext.when == null || task.ext.when

    script:
    def args = task.ext.args ?: ''
    prefix = task.ext.prefix ?: "${meta.id}"
    if ("${cells}" == "${prefix}.h5ad") {
        error("Input and output names are the same, set ext.prefix in the module configuration to disambiguate!")
    }
    def accelerator = task.accelerator ? 'gpu' : 'cpu'
    """
    export MPLCONFIGDIR=./tmp/mpl
    export NUMBA_CACHE_DIR=./tmp/numba

    dra-scvi train \\
        ${cells} \\
        --output ${prefix}.h5ad \\
        --model-dir ${prefix}_model \\
        --json ${prefix}.json \\
        --report ${prefix}.html \\
        --threads ${task.cpus} \\
        --accelerator ${accelerator} \\
        --quiet \\
        ${args}

    cat <<-END_VERSIONS > versions.yml
    "${task.process}":
        dra_scvi: \$(dra-scvi --version)
    END_VERSIONS
    """

    stub:
    prefix = task.ext.prefix ?: "${meta.id}"
    """
    touch ${prefix}.h5ad
    mkdir ${prefix}_model
    touch ${prefix}_model/model.pt
    echo '{}' > ${prefix}.json
    touch ${prefix}.html

    cat <<-END_VERSIONS > versions.yml
    "${task.process}":
        dra_scvi: \$(dra-scvi --version)
    END_VERSIONS
    """
}
