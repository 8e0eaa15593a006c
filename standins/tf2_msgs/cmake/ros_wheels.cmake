# What the ROS 2 packages on PyPI need beyond a ROS installation. pyproject.toml (and colcon on top of the wheels) names
# this file in CMAKE_PROJECT_INCLUDE; a build inside a ROS installation never reads it.

# The generators look one another up in the ament index, whose path a ROS installation's setup file would have exported.
# Here it is every prefix on PATH that has such an index: the virtual environment, or pip's temporary one.
if(NOT DEFINED ENV{AMENT_PREFIX_PATH} OR "$ENV{AMENT_PREFIX_PATH}" STREQUAL "")
  cmake_path(CONVERT "$ENV{PATH}" TO_CMAKE_PATH_LIST ros_wheels_bins NORMALIZE)
  set(ros_wheels_prefixes)
  foreach(ros_wheels_bin IN LISTS ros_wheels_bins)
    cmake_path(GET ros_wheels_bin PARENT_PATH ros_wheels_prefix)
    if(EXISTS "${ros_wheels_prefix}/share/ament_index/resource_index")
      list(APPEND ros_wheels_prefixes "${ros_wheels_prefix}")
    endif()
  endforeach()
  list(REMOVE_DUPLICATES ros_wheels_prefixes)
  cmake_path(CONVERT "${ros_wheels_prefixes}" TO_NATIVE_PATH_LIST ros_wheels_native)
  set(ENV{AMENT_PREFIX_PATH} "${ros_wheels_native}")
  message(STATUS "ROS wheels: AMENT_PREFIX_PATH=${ros_wheels_native}")
endif()

# The message wheels' targets carry include folders of the machine that built them, and CMake refuses folders that are not
# there. Run at the end of the top CMakeLists.txt, when all targets are known and before CMake checks them.
function(ros_wheels_drop_foreign_includes)
  get_directory_property(imported IMPORTED_TARGETS)
  foreach(target IN LISTS imported)
    get_target_property(folders "${target}" INTERFACE_INCLUDE_DIRECTORIES)
    if(folders)
      set(present)
      foreach(folder IN LISTS folders)
        string(GENEX_STRIP "${folder}" plain)
        if(NOT plain STREQUAL folder OR IS_DIRECTORY "${folder}")
          list(APPEND present "${folder}")
        endif()
      endforeach()
      set_property(TARGET "${target}" PROPERTY INTERFACE_INCLUDE_DIRECTORIES "${present}")
    endif()
  endforeach()
endfunction()
cmake_language(DEFER CALL ros_wheels_drop_foreign_includes)
